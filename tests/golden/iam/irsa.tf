resource "aws_iam_role" "realtime_edge" {
  name               = "eu-edge"
  path               = "/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Federated": "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"
        },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {
          "StringEquals": {
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud": "sts.amazonaws.com",
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub": "system:serviceaccount:channels:eu-edge"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_edge_access" {
  name   = "realtime-channels-eu-edge-access"
  role   = aws_iam_role.realtime_edge.name
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

resource "aws_iam_role" "realtime_dispatcher" {
  name               = "eu-hooks"
  path               = "/teams/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Federated": "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"
        },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {
          "StringEquals": {
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud": "sts.amazonaws.com",
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub": "system:serviceaccount:channels:eu-dispatcher"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_dispatcher_access" {
  name   = "realtime-channels-eu-dispatcher-access"
  role   = aws_iam_role.realtime_dispatcher.name
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

resource "aws_iam_role" "realtime_operator" {
  name               = "realtime-operator"
  path               = "/"
  assume_role_policy = <<-EOT
  {
    "Version": "2012-10-17",
    "Statement": [
      {
        "Effect": "Allow",
        "Principal": {
          "Federated": "arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"
        },
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {
          "StringEquals": {
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud": "sts.amazonaws.com",
            "oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub": "system:serviceaccount:realtime-operator:realtime-operator"
          }
        }
      }
    ]
  }
  EOT
}

resource "aws_iam_role_policy" "realtime_operator_access" {
  name   = "realtime-channels-eu-operator-access"
  role   = aws_iam_role.realtime_operator.name
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
