resource "aws_iam_user_policy" "realtime_edge_access" {
  name   = "realtime-channels-eu-edge-access"
  user   = var.user_name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:DescribeStreamSummary",
          "kinesis:PutRecords"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"
      }
    ]
  }
  EOT
}

resource "aws_iam_user_policy" "realtime_dispatcher_access" {
  name   = "realtime-channels-eu-dispatcher-access"
  user   = var.user_name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:DescribeStreamSummary",
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:ListShards"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"
      }
    ]
  }
  EOT
}

resource "aws_iam_user_policy" "realtime_operator_access" {
  name   = "realtime-channels-eu-operator-access"
  user   = var.user_name
  policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Sid": "Stream",
        "Effect": "Allow",
        "Action": [
          "kinesis:AddTagsToStream",
          "kinesis:CreateStream",
          "kinesis:DescribeStreamSummary",
          "kinesis:GetRecords",
          "kinesis:GetShardIterator",
          "kinesis:IncreaseStreamRetentionPeriod",
          "kinesis:ListShards",
          "kinesis:ListTagsForStream",
          "kinesis:RemoveTagsFromStream",
          "kinesis:StartStreamEncryption",
          "kinesis:UpdateShardCount",
          "kinesis:UpdateStreamMode"
        ],
        "Resource": "arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"
      }
    ]
  }
  EOT
}
variable "user_name" {
  type = string
}
